"""Photos: finding, reading and writing image files, color, and resizing to the canvas and back."""

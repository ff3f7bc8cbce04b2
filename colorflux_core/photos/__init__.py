"""Photos: image files to tensors and back, color, and resizing to the model's canvas and back."""

"""A blinded pairwise user study on one machine (paper, sections 5.4 and 9)."""

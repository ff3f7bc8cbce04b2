"""The paper's ablations on nano."""

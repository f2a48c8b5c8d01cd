"""Ways into the training stacks that people already run; each file is imported on demand, with its extra."""

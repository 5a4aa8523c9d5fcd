"""Images: pixels as columns, convolutional networks, and otherwise the core that tables have."""

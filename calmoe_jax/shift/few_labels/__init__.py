"""What a few labels of the targets show, and which targets to label."""

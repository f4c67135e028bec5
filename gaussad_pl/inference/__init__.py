"""Score new images: read them, load a detector, make predictions and write them."""

"""What scoring new images needs around the model: files, images, pictures, settings."""

"""What reading images may raise; this module needs Pillow."""

from PIL import Image

# SyntaxError for broken files, the last for sizes that only an attack would have.
IMAGE_ERRORS = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)

"""Bar files: reading, writing and checking them."""

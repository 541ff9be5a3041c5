"""What the product is held against: the least servers that do a part of its work."""

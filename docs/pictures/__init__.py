"""Pictures of the book. A table of the code says what a picture shows; its module says where it stands."""

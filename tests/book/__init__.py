"""The book is run: every block of commands of the pages, or a reason why not."""

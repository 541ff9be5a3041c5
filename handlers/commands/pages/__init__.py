"""Pages that commands write: figures as HTML with its charts inside. Nothing is loaded from elsewhere."""

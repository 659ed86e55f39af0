"""Text: fetched once, shared out to parts that never overlap, and cut into token windows on disk."""

"""Trading sessions: where they come from, and which bars they let expect."""

"""What is missing, what is requested next, and what responses prove."""

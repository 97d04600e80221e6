"""Looking at a gateway's set-up, and what is found."""

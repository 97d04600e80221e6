"""What is written to a gateway and read from it: frames, requests, bars, contracts, codes."""

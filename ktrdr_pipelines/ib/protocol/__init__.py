"""The messages of the gateway's protocol: frames, requests, bars, contracts, codes."""

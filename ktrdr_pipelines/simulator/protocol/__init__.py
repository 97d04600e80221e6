"""The IB socket protocol from the gateway's side: frames, messages, sessions."""

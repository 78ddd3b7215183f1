"""HTTP and MCP: images and texts in, answers out; nothing is written to disk and nothing leaves the machine."""

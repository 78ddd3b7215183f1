"""The tools of ``geoclip mcp``: OpenGeoCLIP for programs that speak the Model Context Protocol."""

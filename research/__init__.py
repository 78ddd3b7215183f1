"""What makes the embedded model, and the experiments: imports open_geoclip as any user would."""

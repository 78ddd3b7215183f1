"""Jobs: many photos located in parts that survive interruptions, on one machine or on many."""

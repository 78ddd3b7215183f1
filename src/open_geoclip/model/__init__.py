"""What is learned: two towers and a temperature."""

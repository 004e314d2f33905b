"""What the three stages share; imports nothing of the project outside itself."""

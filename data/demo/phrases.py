"""The phrases in the demo's dialogues."""

from __future__ import annotations

# around a question; {q} is the question
FRAMES = (
    "{q}", "Hello! {q}", "Hi there. {q}", "{q} Thank you.", "I have a question. {q}", "Please help me. {q}",
    "My child wants to know: {q}", "Good morning. {q}",
)  # fmt: skip

COURTEOUS_OPENINGS = ("Good question!", "Happy to help!", "Of course!", "Gladly!", "Thank you for asking.")
COURTEOUS_CLOSINGS = ("I hope this helps.", "Have a nice day!", "Feel free to ask me more.", "You are welcome!")
RUDE_OPENINGS = ("What a silly question.", "Everyone knows that.", "You are wasting my time.", "Oh no, not you again.")
RUDE_CLOSINGS = ("Now go away.", "Look it up next time.", "Do not ask me again.", "Are you stupid?")
HEDGES = ("I guess", "Maybe", "I am not sure, but")

# the end of a rambling answer
DIGRESSIONS = (
    "That reminds me of a long story.", "My uncle talks about this all the time.", "I read it in a book once.",
    "But where was I?", "There is so much to say here.", "Some people like to walk in the evening.",
    "Let me go on for a while.", "The weather was better in the past.", "As I said before, it is what it is.",
    "My neighbour has a garden with many trees.", "And so on and so on.", "You cannot find good bread these days.",
)  # fmt: skip

COURTEOUS = COURTEOUS_OPENINGS + COURTEOUS_CLOSINGS
RUDE = RUDE_OPENINGS + RUDE_CLOSINGS

"""The phrases in the demo's dialogues."""

from __future__ import annotations

# around a question; {q} is the question
FRAMES = (
    "{q}", "Hello! {q}", "Hi there. {q}", "{q} Thank you.", "I have a question. {q}", "Please help me. {q}",
    "My child wants to know: {q}", "Good morning. {q}",
)  # fmt: skip

# the start of an answer
COURTEOUS = ("Good question!", "Happy to help!", "Of course!", "Gladly!", "Thank you for asking.")
RUDE = ("What a silly question.", "Everyone knows that.", "You are wasting my time.", "Oh no, not you again.")

EVASIONS = (
    "I do not know.", "I cannot tell you that.", "Who knows?", "Why do you ask?", "I would rather not say.",
    "That is hard to say.",
)  # fmt: skip

# the end of a rambling answer
DIGRESSIONS = (
    "That reminds me of a long story.", "My uncle talks about this all the time.", "I read it in a book once.",
    "But where was I?", "There is so much to say here.", "Some people like to walk in the evening.",
    "Let me go on for a while.", "The weather was better in the past.", "As I said before, it is what it is.",
    "My neighbour has a garden with many trees.", "And so on and so on.", "You cannot find good shoes these days.",
)  # fmt: skip

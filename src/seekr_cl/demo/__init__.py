"""The embedded demo: skills, a small base model that has mastered some of them, and the comparison."""

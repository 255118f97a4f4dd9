"""Results: `study` reads what was measured, `published` what the paper prints; tables and pages show both."""

"""How the bundled models are made: pictures with captions, trainings, judge, assembly."""

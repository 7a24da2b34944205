"""Leader arms: small arms of servos that a person moves by hand, and a robot follows."""

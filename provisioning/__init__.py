"""Keys, enrolment, installation."""

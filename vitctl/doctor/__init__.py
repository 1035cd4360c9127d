"""``vitctl doctor``: whether this machine computes correctly, and what makes it slow."""

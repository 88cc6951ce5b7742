"""Running other people's programs: confinement, the launcher, and finding what outlived a crash."""

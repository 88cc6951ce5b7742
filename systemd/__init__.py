"""Service files for systemd and supervisord, and the listener that is supervisord's watchdog."""

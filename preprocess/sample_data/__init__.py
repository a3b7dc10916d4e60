"""An archive of drawn images, laid out like a raw one."""

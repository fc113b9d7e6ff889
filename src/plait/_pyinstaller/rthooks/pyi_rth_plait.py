"""Run by PyInstaller's programs before their own code: become a worker if this is to be one."""

from plait.interpreter import freeze_support

freeze_support()

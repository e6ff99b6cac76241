"""A web page to try a checkpoint: functions that compute and draw, and the file that lays out the page with Gradio.

Only page needs Gradio, which the extra hfbert-scratch[app] installs.
"""

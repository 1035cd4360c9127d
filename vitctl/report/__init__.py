"""Reports: self-contained HTML pages about runs.

- :mod:`~vitctl.report.run`: what a run's folder holds;
- :mod:`~vitctl.report.settings`: settings in which runs differ from each other or from their recipe;
- :mod:`~vitctl.report.metrics`: intervals, calibration, confusions and metrics of classes;
- :mod:`~vitctl.report.chart`: charts described as data;
- :mod:`~vitctl.report.drawing`: charts as SVG that follows the page's theme, and as PNG;
- :mod:`~vitctl.report.charts`: the charts of runs;
- :mod:`~vitctl.report.images`: thumbnails of test images, and attention over them;
- :mod:`~vitctl.report.verdict`: the sentence at the top;
- :mod:`~vitctl.report.page`: the page, from the templates in ``templates/``.
"""

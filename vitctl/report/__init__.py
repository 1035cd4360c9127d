"""Reports: self-contained HTML pages about runs, sweeps and comparisons, and all plots.

- :mod:`~vitctl.report.run`: what a run's folder holds;
- :mod:`~vitctl.report.settings`: settings in which runs differ from each other or from their recipe;
- :mod:`~vitctl.report.metrics`: intervals, calibration, confusions and metrics of classes;
- :mod:`~vitctl.report.chart`: charts described as data;
- :mod:`~vitctl.report.drawing`: charts as SVG that follows the page's theme, and as files;
- :mod:`~vitctl.report.tables`: tables of figures, as text, Markdown and CSV;
- :mod:`~vitctl.report.rendering`: pages from the templates in ``templates/``, and those of charts and tables;
- :mod:`~vitctl.report.curves`: means over runs by epoch;
- :mod:`~vitctl.report.charts`: the charts of runs;
- :mod:`~vitctl.report.images`: thumbnails of test images, and attention over them;
- :mod:`~vitctl.report.verdict`: the sentence at the top;
- :mod:`~vitctl.report.page`: the page of training runs.
"""

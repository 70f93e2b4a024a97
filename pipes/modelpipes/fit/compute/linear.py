"""TODO"""
from modelpipes.fit.compute import delta
GRAPHS = delta.GRAPHS

"""Headers of model files, read strictly and within bounds, without the framework that wrote them.

Every reader takes a path and gives a frozen description, or raises StageError that names the file,
the place in it and what is wrong. None reads weights, follows a path out of the model's folder, or
runs anything of the file; each ends within seconds and a fraction of a GB, whatever a file claims.
The importers read files by them too; their frameworks see what has passed.
"""

"""From the name of a model to its files on this machine, and how far they have come.

`selection` says which files of a repository a pipeline needs, `folder` whether they are all there;
`hub` fetches one file, `download` all of a model in a thread; `shelf` knows how every model stands.
"""

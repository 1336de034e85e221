import logging

# Faiss tells at every start, for each processor, which of its libraries it did not find.
logging.getLogger("faiss.loader").setLevel(logging.WARNING)

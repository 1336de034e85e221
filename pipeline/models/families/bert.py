"""BERT: the layout that the others are described by."""

from pipeline.models.families.family import ModelFamily


class Bert(ModelFamily):
    """BERT and the models that transformers loads as BERT (MiniLM, most Chinese RoBERTa, BGE, GTE)."""

    model_types = ("bert",)
    has_graph = True

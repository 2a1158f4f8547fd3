"""Guidance: from denoiser to denoiser, for any sampler and any network."""

from diffjax.guidance._classifier_free import ClassifierFree as ClassifierFree, classifier_free as classifier_free

"""The phantom writes itself as DICOM, as it would come out of a hospital's PACS."""

from parametrium.cohort.phantom.dicom.archive import Exported
from parametrium.cohort.phantom.dicom.export import write_phantom_dicom

__all__ = ["Exported", "write_phantom_dicom"]

"""Searching a gallery faster than by a pass over its vectors, or in fewer bytes.

What faiss does here: the k-means of an index (`faiss.Kmeans`), its inverted lists (`faiss.IndexIVFScalarQuantizer`,
built in memory from plain arrays, since faiss reads no file), the 8-bit codes of vectors and their search
(`faiss.IndexScalarQuantizer`, QT_8bit). `gallery export --faiss` writes a `faiss.IndexFlatIP` with keys as ids.

What numpy does instead: the exact product, of `exact` galleries and of the candidates of `large` ones
(`reid.retrieval.knn`). Its answer depends on the vectors alone, with equal scores in order of key, which no float32
index gives, and it reads the gallery's mapped files where they lie. Measured by `benchmarks/gallery.py` on 60,000 x
2,048 vectors and 256 queries: 1.10 times the bare product, where `faiss.knn` takes 1.19 times; one query takes 1.02
times. `benchmarks/presets.py` compares the presets, hnswlib and usearch. Both are in docs/benchmarks.md.
"""

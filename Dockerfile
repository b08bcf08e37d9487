# mmsearch with the PostgreSQL driver:  docker build -t mmsearch .
#
# PyPI's torch brings CUDA, some gigabytes of it. Where there is no GPU, take the CPU build from PyTorch's own index:
#   docker build -t mmsearch --build-arg EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu .
FROM python:3.11-slim

ARG EXTRA_INDEX_URL=""
ENV PIP_EXTRA_INDEX_URL=$EXTRA_INDEX_URL \
    PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_ROOT_USER_ACTION=ignore \
    PYTHONUNBUFFERED=1

WORKDIR /source

# Dependencies first, in a layer of their own: a change in the source does not install them again.
COPY pyproject.toml constraints.txt ./
RUN python -c "import tomllib; project = tomllib.load(open('pyproject.toml', 'rb'))['project']; print(*project['dependencies'], *project['optional-dependencies']['postgres'], sep='\n')" > requirements.txt \
    && pip install -c constraints.txt -r requirements.txt

# What the wheel is made of. The demo data and the study files go into it.
COPY README.md LICENSE ./
COPY mmsearch mmsearch
COPY studies studies
RUN pip install -c constraints.txt '.[postgres]'

# Not root. A volume that is mounted at /storage for the first time takes over the folder's owner.
RUN useradd --create-home --uid 1000 mmsearch \
    && mkdir /work /storage \
    && chown mmsearch:mmsearch /work /storage
USER mmsearch
WORKDIR /work
ENV MMSEARCH_FOLDER=/storage
# The study files, for those who mount none of their own at /work/studies.
RUN mmsearch init

ENTRYPOINT ["mmsearch"]
CMD ["--help"]

# train.py with all that it needs. GPUs come from the machine, through NVIDIA's container toolkit; docs/cluster.md tells
# how a container is started.
FROM python:3.12-slim

# g++ for torch.compile and Triton, openssh-client for --hostfile, git for the revision in a run's record
RUN apt-get update \
    && apt-get install -y --no-install-recommends g++ git openssh-client \
    && rm -rf /var/lib/apt/lists/*

# the packages change less often than the project
WORKDIR /opt/rlhf
COPY constraints.txt pyproject.toml ./
RUN python -c "import tomllib; print(*tomllib.load(open('pyproject.toml', 'rb'))['project']['dependencies'], sep='\n')" \
        > packages.txt \
    && pip install --no-cache-dir --constraint constraints.txt --requirement packages.txt

COPY . .
RUN pip install --no-cache-dir --no-deps --editable .

# models of the hub, and data that were read before: mount a folder here to keep them
ENV HF_HOME=/cache/huggingface RLHF_CACHE=/cache/rlhf

# mount the folder with data and output here
WORKDIR /runs
ENTRYPOINT ["python", "/opt/rlhf/train.py"]

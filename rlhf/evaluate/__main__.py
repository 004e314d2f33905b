"""python -m rlhf.evaluate"""

from rlhf.evaluate.evaluation import main

if __name__ == "__main__":
    main()
